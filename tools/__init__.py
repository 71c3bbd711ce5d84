"""Commands for whoever works on Tandem: they write the generated files of the checkout."""
