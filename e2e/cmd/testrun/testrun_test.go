package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sources is a module of tests that go well and badly.
var sources = map[string]string{
	"go.mod": "module example.com/m\n\ngo 1.26.0\n",
	"good/good_test.go": `package good
import "testing"
func TestPlain(t *testing.T) {}
func TestTable(t *testing.T) {
	for _, name := range []string{"a", "b/with/slashes"} { t.Run(name, func(t *testing.T) {}) }
}
func TestSkipped(t *testing.T) { t.Skip("needs a unicorn, white") }
func FuzzNothing(f *testing.F) { f.Add(1); f.Fuzz(func(t *testing.T, n int) {}) }
`,
	"bad/bad_test.go": `package bad
import "testing"
func TestGood(t *testing.T) { t.Log("not worth reading") }
func TestTable(t *testing.T) {
	t.Log("before the subtests")
	t.Run("works", func(t *testing.T) {})
	t.Run("fails", func(t *testing.T) { t.Error("this is wrong") })
}
func TestParent(t *testing.T) { t.Run("works", func(t *testing.T) {}); t.Error("wrong after all") }
func TestLazy(t *testing.T) { t.Skip("no time today") }
func TestSilent(t *testing.T) { t.SkipNow() }
`,
	"panics/panics_test.go": `package panics
import "testing"
func TestBefore(t *testing.T) {}
func TestPanics(t *testing.T) { t.Run("sub", func(t *testing.T) { panic("oh") }) }
func TestAfter(t *testing.T) {}
`,
	"exits/exits_test.go": `package exits
import "os"
import "testing"
func TestBefore(t *testing.T) {}
func TestExits(t *testing.T) { os.Exit(3) }
`,
	"broken/broken_test.go": "package broken\n\nvar x int = \"text\"\n",
	"hangs/hangs_test.go": `package hangs
import "testing"
func TestFirst(t *testing.T) {}
func TestHangs(t *testing.T) { select {} }
`,
}

func layOut(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range sources {
		path := filepath.Join(dir, name)
		if err := makeDir(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestStage(t *testing.T) {
	dir := layOut(t)
	tests := []struct {
		name, stage             string
		args                    []string
		passed, failed, skipped int
		failures                []string
		says, hides             []string
	}{
		{
			name: "good", stage: "unit", args: []string{"./good"}, passed: 4, skipped: 1, // one is the fuzz target's seed
			says: []string{"ok    example.com/m/good", "4 passed, 1 skipped"},
		},
		{
			name: "bad", stage: "unit", args: []string{"./bad"}, passed: 3, failed: 4,
			failures: []string{"TestTable/fails", "TestParent", "TestLazy", "TestSilent"},
			says:     []string{"this is wrong", "before the subtests", "wrong after all", `TestLazy skips`, `"no time today"`, "3 passed, 4 failed"},
			hides:    []string{"not worth reading", "=== RUN"},
		},
		{
			name: "panics", stage: "unit", args: []string{"./panics"}, passed: 1, failed: 1,
			failures: []string{"TestPanics/sub"}, says: []string{"panic: oh"},
		},
		{
			name: "exits", stage: "unit", args: []string{"./exits"}, passed: 1, failed: 1,
			failures: []string{"TestExits"},
		},
		{
			name: "does not build", stage: "unit", args: []string{"./broken", "./good"}, passed: 4, failed: 1, skipped: 1,
			failures: []string{""}, says: []string{"cannot use \"text\""},
		},
		{
			name: "times out", stage: "unit", args: []string{"-timeout=1s", "./hangs"}, passed: 1, failed: 1,
			failures: []string{"TestHangs"}, says: []string{"test timed out"},
		},
		{
			name: "no such package", stage: "unit", args: []string{"./nowhere"}, failed: 1,
			failures: []string{""},
		},
		{
			name: "bad flag", stage: "unit", args: []string{"-nosuchflag", "./good"}, failed: 1,
		},
		{
			name: "nothing to run", stage: "unit", args: []string{"-run=^$", "./good"}, failed: 1,
			failures: []string{"no tests"}, says: []string{"no tests in stage unit"},
		},
		{
			name: "fuzz", stage: "fuzz", args: []string{"-run=^$", "-fuzz=^FuzzNothing$", "-fuzztime=20x", "-parallel=1", "./good"}, passed: 1,
			says: []string{"good.FuzzNothing"},
		},
		{
			name: "each test is told", stage: "e2e", args: []string{"-run=Plain", "./good"}, passed: 1,
			says: []string{"pass TestPlain"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			r := &runner{dir: dir, out: &out, skips: []skip{{"needs a unicorn", true}, {"no time", false}}, report: &report{}}
			r.stage(t.Context(), tt.stage, []job{{tt.args}}, 1)
			got := [3]int{r.report.Passed, r.report.Failed, r.report.Skipped}
			if want := [3]int{tt.passed, tt.failed, tt.skipped}; got != want {
				t.Errorf("passed, failed, skipped = %v, want %v", got, want)
			}
			var failures []string
			for _, f := range r.report.Failures {
				failures = append(failures, f.Test)
			}
			if tt.failures != nil && !slices.Equal(failures, tt.failures) {
				t.Errorf("failures %q, want %q", failures, tt.failures)
			}
			for _, s := range tt.says {
				if !strings.Contains(out.String(), s) {
					t.Errorf("does not say %q", s)
				}
			}
			for _, s := range tt.hides {
				if strings.Contains(out.String(), s) {
					t.Errorf("says %q", s)
				}
			}
			if t.Failed() {
				t.Logf("output:\n%s", &out)
			}
		})
	}
}

// writer calls a function for what is written.
type writer func(p []byte)

func (w writer) Write(p []byte) (int, error) { w(p); return len(p), nil }

// A run that is interrupted ends, with what it has started: the test would hang.
func TestInterrupt(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r := &runner{dir: layOut(t), report: &report{}, out: writer(func(p []byte) {
		if bytes.Contains(p, []byte("TestFirst")) {
			cancel()
		}
	})}
	r.stage(ctx, "e2e", []job{{[]string{"./hangs"}}}, 1)
}

func TestForgiveDeadline(t *testing.T) {
	tests := []struct {
		name   string
		output []string
		want   string
	}{
		{"only the deadline", []string{"fuzz: elapsed: 10s, execs: 77\n", "--- FAIL: FuzzX (10.03s)\n", "    context deadline exceeded\n", "FAIL\n"}, "pass"},
		{"an input", []string{"--- FAIL: FuzzX (0.03s)\n", "    --- FAIL: FuzzX (0.00s)\n", "        x_test.go:9: bad\n", "    Failing input written to testdata/fuzz/FuzzX/1\n"}, "fail"},
		{"an input and the deadline", []string{"    context deadline exceeded\n", "    Failing input written to testdata/fuzz/FuzzX/1\n"}, "fail"},
		{"a message of the target's", []string{"    x_test.go:9: bad\n", "    context deadline exceeded\n"}, "fail"},
		{"a panic", []string{"panic: context\n", "    context deadline exceeded\n"}, "fail"},
		{"anything else", []string{"    fuzzing process hung or terminated unexpectedly\n"}, "fail"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newCollector()
			var got *pkgRun
			c.pkgDone = func(p *pkgRun) { p.forgiveDeadline(); got = p }
			c.take(event{Action: "run", Package: "p", Test: "FuzzX"})
			for _, o := range tt.output {
				c.take(event{Action: "output", Package: "p", Test: "FuzzX", Output: o})
			}
			c.take(event{Action: "fail", Package: "p", Test: "FuzzX"})
			c.take(event{Action: "fail", Package: "p"})
			if got.state != tt.want || got.tests[0].state != tt.want {
				t.Errorf("package %s, test %s, want %s", got.state, got.tests[0].state, tt.want)
			}
		})
	}
}

func TestReadSkips(t *testing.T) {
	write := func(text string) string {
		path := filepath.Join(t.TempDir(), "skips")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	skips, err := readSkips(t.Context(), write("# a comment\n\nneeds gold when true\nneeds silver when false\nneeds silver and tin when test a = a\n"))
	if err != nil {
		t.Fatal(err)
	}
	for message, want := range map[string]bool{
		"needs gold": true, "needs gold: none found": true, "needs silver": false, "needs silver and tin": true,
		"gold": false, "": false,
	} {
		if got := allowed(skips, message); got != want {
			t.Errorf("%q: %v, want %v", message, got, want)
		}
	}
	if _, err := readSkips(t.Context(), write("needs gold\n")); err == nil || !strings.Contains(err.Error(), "skips:1: ") {
		t.Errorf("a line without condition: %v", err)
	}
	if _, err := readSkips(t.Context(), filepath.Join("..", "..", "..", ".ci", "skips")); err != nil {
		t.Errorf("the project's own: %v", err)
	}
}

func TestPackages(t *testing.T) {
	dir := t.TempDir()
	source := "package p\nfunc FuzzOne(f *testing.F) {}\nfunc TestNot(t *testing.T) {}\nfunc (x X) FuzzMethod() {}\n"
	if err := os.WriteFile(filepath.Join(dir, "a_test.go"), []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	var in bytes.Buffer
	for _, l := range []listed{
		{ImportPath: module + "/a", Dir: dir, TestGoFiles: []string{"a_test.go"}},
		{ImportPath: module + "/a.test", Deps: []string{module + "/a [" + module + "/a.test]", "testing"}},
		{ImportPath: module + "/none", Dir: dir},
		{ImportPath: module + "/e2e/rung3.test", Deps: []string{module + "/e2e/notebook"}},
		{ImportPath: module + "/e2e/notebook.test", Deps: []string{module + "/e2e/notebook [" + module + "/e2e/notebook.test]"}},
	} {
		if err := json.NewEncoder(&in).Encode(l); err != nil {
			t.Fatal(err)
		}
	}
	pkgs, err := packages(&in)
	if err != nil {
		t.Fatal(err)
	}
	want := []testPackage{
		{path: module + "/a", fuzz: []string{"FuzzOne"}},
		{path: module + "/e2e/rung3", notebook: true},
		{path: module + "/e2e/notebook", notebook: true},
	}
	if d := cmp.Diff(want, pkgs, cmp.AllowUnexported(testPackage{})); d != "" {
		t.Error(d)
	}

	o := options{fuzzTime: time.Second, only: regexp.MustCompile("a.Fuzz")}
	if jobs := o.jobs("fuzz", pkgs); len(jobs) != 1 || !slices.Contains(jobs[0].args, "-fuzz=^FuzzOne$") || !slices.Contains(jobs[0].args, "-fuzztime=1s") ||
		!slices.Contains(jobs[0].args, "-fuzzminimizetime=1x") {
		t.Errorf("fuzz: %v", jobs)
	}
	o.only = regexp.MustCompile("")
	if jobs := o.jobs("unit", pkgs); len(jobs) != 1 || !slices.Contains(jobs[0].args, "-race") || jobs[0].args[len(jobs[0].args)-1] != module+"/a" {
		t.Errorf("unit: %v", jobs)
	}
	if jobs := o.jobs("e2e", pkgs); len(jobs) != 1 || slices.Contains(jobs[0].args, "-race") || !slices.Contains(jobs[0].args, "-p=1") {
		t.Errorf("e2e: %v", jobs)
	}
}

func TestReport(t *testing.T) {
	r := &report{Seconds: 3}
	s := &stage{Name: "unit", Seconds: 3}
	r.Stages = append(r.Stages, s)
	r.count(s, 5, 2)
	r.fail(s, &test{pkg: module + "/x", name: "TestX/sub"})
	for i := range 2 * howMany {
		r.time(s, &test{pkg: module + "/x", name: "TestX", seconds: float64(i)})
	}
	r.time(s, &test{name: "TestX/sub", seconds: 1000})
	path := filepath.Join(t.TempDir(), "out", "test.json")
	if err := r.write(path); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got report
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(r, &got, cmp.AllowUnexported(skipRecord{})); d != "" {
		t.Error(d)
	}
	if len(got.Slowest) != howMany || got.Slowest[0].Seconds != 2*howMany-1 {
		t.Errorf("slowest: %v", got.Slowest)
	}
	var out bytes.Buffer
	r.print(&out)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if last := lines[len(lines)-1]; last != "5 passed, 1 failed, 2 skipped" {
		t.Errorf("last line %q", last)
	}
}
