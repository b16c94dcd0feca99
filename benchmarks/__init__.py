"""Speed compared with other libraries and with the hardware limit (`make bench`). Not part of the wheel."""
