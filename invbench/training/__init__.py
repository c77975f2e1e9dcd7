"""Small networks trained both ways, with involution and with convolution, and the images that they learn from."""
