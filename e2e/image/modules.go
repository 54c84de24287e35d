package image

import (
	"path/filepath"

	"github.com/lodgehv/lodge/hypervisor/bootimage"
)

// modules returns files of kernel modules, relative to lib/modules/VERSION, in an
// order in which they can be inserted.
func (k *Kernel) modules(names ...string) ([]string, error) {
	m, err := bootimage.ReadModules(filepath.Join(k.Dir, "lib/modules", k.Version))
	if err != nil {
		return nil, err
	}
	return m.Resolve(names...)
}
