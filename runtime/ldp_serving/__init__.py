"""Image server of ldp-export bundles: an asynchronous front over one engine thread per pipeline."""
