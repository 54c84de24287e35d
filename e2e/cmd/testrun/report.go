package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
)

// report is out/test.json.
type report struct {
	Passed   int          `json:"passed"`
	Failed   int          `json:"failed"`
	Skipped  int          `json:"skipped"`
	Seconds  float64      `json:"seconds"`
	Stages   []*stage     `json:"stages"`
	Failures []testRecord `json:"failures"`
	Skips    []skipRecord `json:"skips"`
	Slowest  []testRecord `json:"slowest"` // tests, without their subtests
}

type stage struct {
	Name    string  `json:"name"`
	Passed  int     `json:"passed"`
	Failed  int     `json:"failed"`
	Skipped int     `json:"skipped"`
	Seconds float64 `json:"seconds"`
}

type testRecord struct {
	Stage   string  `json:"stage"`
	Package string  `json:"package"`
	Test    string  `json:"test"` // empty if it is the package that failed
	Seconds float64 `json:"seconds"`
}

type skipRecord struct {
	testRecord
	Reason  string `json:"reason"`
	Allowed bool   `json:"allowed"`
}

func (s *stage) record(t *test) testRecord {
	return testRecord{s.Name, short(t.pkg), t.name, t.seconds}
}

func (r *report) count(s *stage, passed, skipped int) {
	s.Passed += passed
	r.Passed += passed
	s.Skipped += skipped
	r.Skipped += skipped
}

func (r *report) fail(s *stage, t *test) {
	s.Failed++
	r.Failed++
	r.Failures = append(r.Failures, s.record(t))
}

// howMany of the slowest tests are kept.
const howMany = 20

func (r *report) time(s *stage, t *test) {
	for i := range len(t.name) {
		if t.name[i] == '/' {
			return
		}
	}
	r.Slowest = append(r.Slowest, s.record(t))
	slices.SortStableFunc(r.Slowest, func(a, b testRecord) int {
		switch {
		case a.Seconds > b.Seconds:
			return -1
		case a.Seconds < b.Seconds:
			return 1
		}
		return 0
	})
	r.Slowest = r.Slowest[:min(len(r.Slowest), howMany)]
}

func (r *report) write(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := makeDir(path); err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// print ends the run: what failed, and the line that everybody looks for.
func (r *report) print(w io.Writer) {
	for _, f := range r.Failures {
		name := f.Test
		if name == "" {
			name = "(the package)"
		}
		fmt.Fprintf(w, "failed: %s: %s %s\n", f.Stage, f.Package, name)
	}
	for _, s := range r.Stages {
		fmt.Fprintf(w, "%-5s %6.0f s  %d passed, %d failed, %d skipped\n", s.Name, s.Seconds, s.Passed, s.Failed, s.Skipped)
	}
	fmt.Fprintf(w, "%d passed, %d failed, %d skipped\n", r.Passed, r.Failed, r.Skipped)
}
