// Package arch holds no code: its test checks which package may import which (docs/architecture.md).
package arch
