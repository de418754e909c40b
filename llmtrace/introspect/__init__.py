"""The inside of a run: is it sound, what does it show, what is it worth."""
