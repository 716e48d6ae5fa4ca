"""The client's parts: adapters to services, calls with retries, and answers kept on disk."""
