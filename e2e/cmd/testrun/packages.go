package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

const module = "github.com/lodgehv/lodge"

// short returns a package's path within the module.
func short(path string) string { return strings.TrimPrefix(strings.TrimPrefix(path, module), "/") }

// testPackage is a package that has tests.
type testPackage struct {
	path     string
	notebook bool     // its tests can start the simulated notebook
	fuzz     []string // its fuzz targets
}

// listed is what testrun reads of go list's output.
type listed struct {
	ImportPath                string
	Dir                       string
	Deps                      []string
	TestGoFiles, XTestGoFiles []string
}

// list returns the module's packages that have tests.
func list(ctx context.Context) ([]testPackage, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-test", "-json=ImportPath,Dir,Deps,TestGoFiles,XTestGoFiles", "./...")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return nil, fmt.Errorf("go list: %w", err)
	}
	return packages(strings.NewReader(string(out)))
}

// packages reads go list's output: for a package with tests, the package and the test program that go makes of it, which
// is called PATH.test and has the tests' dependencies too.
func packages(r io.Reader) ([]testPackage, error) {
	var pkgs []testPackage
	files := make(map[string][]string)
	for dec := json.NewDecoder(r); ; {
		var l listed
		if err := dec.Decode(&l); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		path, isTest := strings.CutSuffix(l.ImportPath, ".test")
		if !isTest {
			for _, f := range slices.Concat(l.TestGoFiles, l.XTestGoFiles) {
				files[path] = append(files[path], filepath.Join(l.Dir, f))
			}
			continue
		}
		pkgs = append(pkgs, testPackage{path: path, notebook: slices.ContainsFunc(l.Deps, startsNotebook)})
	}
	for i := range pkgs {
		p := &pkgs[i]
		for _, f := range files[p.path] {
			targets, err := fuzzTargets(f)
			if err != nil {
				return nil, err
			}
			p.fuzz = append(p.fuzz, targets...)
		}
	}
	return pkgs, nil
}

// startsNotebook reports whether dep is a package that tests of rung 3 alone import. A package that was compiled for a
// test is called "PATH [TEST]".
func startsNotebook(dep string) bool {
	path, _, _ := strings.Cut(dep, " ")
	return path == module+"/e2e/notebook" || path == module+"/e2e/image"
}

// fuzzTargets returns the functions of a test file that go test -fuzz would find. Reading the source is faster than
// building every test program without the race detector, only to ask it.
func fuzzTargets(file string) ([]string, error) {
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Fuzz") {
			names = append(names, fn.Name.Name)
		}
	}
	return names, nil
}
