"""Data loading: named sets and folders, decoding, the order of an epoch, augmentation on the device."""
