"""How a network is computed: engines that give its result, up to rounding, in less time."""
