"""Loss terms: functions and small modules on tensors, each with its equation and source."""
