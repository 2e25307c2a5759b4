"""Is a tumour real, and does it help?"""
