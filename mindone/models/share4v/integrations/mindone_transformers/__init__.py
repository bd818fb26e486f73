"""Share4V as mindone.transformers wants it; importing one of these modules imports that library: seconds."""
