"""The audit record: who did what, kept where nobody changes it. Guards make its entries: `moorage.guard.auditing`."""
