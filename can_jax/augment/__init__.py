"""Image augmentation: random crops on the host; photometric operations, mixup and CutMix on the
device."""
