"""Generation of images: requests, the scale loop, and the pipeline that a service embeds."""
