"""Is a tumour real?"""
