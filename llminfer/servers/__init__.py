"""The servers, and the parts they are made of: queues, batches, KV memory."""
