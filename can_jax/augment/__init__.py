"""Image augmentation: random crops on the host or the device; photometric operations,
RandAugment, mixup and CutMix on the device."""
