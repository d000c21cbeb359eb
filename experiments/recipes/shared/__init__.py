"""What recipes are made of: options, data, scaling, networks and the standard loss."""
