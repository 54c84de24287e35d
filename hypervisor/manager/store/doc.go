// Package store keeps the definitions of guests: one TOML file each, NAME.toml in one directory, which people may edit by hand,
// and the versions before it. What is saved here has been validated, also against the other guests, and is on the disk whole or
// not at all.
package store
