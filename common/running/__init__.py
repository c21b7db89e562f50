"""What every run needs and no paper is about; a student need not read it."""
