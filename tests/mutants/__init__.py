"""`make mutants`: change the code in small ways, and count how many of the changes the unit tests notice."""
