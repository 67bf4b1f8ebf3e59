"""Reference reproduction of on-policy distillation (OPD) for large language models."""
