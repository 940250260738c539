"""The HTTP front: OpenAI's image API over schedulers; it never touches a tensor."""
