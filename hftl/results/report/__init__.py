"""What one run showed, and the page, the card and the table that say it."""
