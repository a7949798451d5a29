"""What is known of each exercise: its cases and the mistakes that people make, a file for each source in sources/."""
