"""What fills a tumour."""
