"""Pretraining on torch.distributed: recipes, data, objectives and the loop. Nothing else imports this."""
