"""The methods that BAR is compared with (section 5), one file each."""
