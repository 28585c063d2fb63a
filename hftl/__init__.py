"""Transfer learning for text and images, with a report that says whether the transfer helped."""
