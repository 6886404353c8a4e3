"""The pure half of metering: quantities, civil time, prices, usage, rating."""
