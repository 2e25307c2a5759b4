"""How either stage of the generator trains."""
