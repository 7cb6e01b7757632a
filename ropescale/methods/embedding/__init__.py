"""Methods that change the vectors which enter the first layer."""
