"""Numbers about images, codes and the split between anatomy and contrast: functions of tensors, without networks."""
