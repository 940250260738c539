"""DPG-Bench's protocol: questions, the answers of the official VQA, and two ways to count them."""
