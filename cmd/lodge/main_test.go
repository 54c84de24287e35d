package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) { testscript.Main(removing{m}, map[string]func(){"lodge": main}) }

// removing removes what tests have built, after them.
type removing struct{ *testing.M }

func (m removing) Run() int {
	status := m.M.Run()
	if built {
		dir, _ := programs()
		os.RemoveAll(dir)
	}
	return status
}

func TestScripts(t *testing.T) { testscript.Run(t, testscript.Params{Dir: "testdata/script"}) }
