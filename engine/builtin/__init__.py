"""The engines that come with the kit. Each rests on `contract` and `toolkit` alone, as an engine of yours does."""
