package main

import (
	"bufio"
	"encoding/json"
	"io"
	"regexp"
	"strings"
)

// event is a line of `go test -json`: see `go doc test2json`.
type event struct {
	Action      string
	Package     string
	ImportPath  string // of what was built, in build-output
	Test        string
	Elapsed     float64 // seconds
	Output      string
	FailedBuild string // ImportPath of the build that failed, in a package's fail
}

// test is what became of one test or subtest.
type test struct {
	pkg     string
	name    string
	state   string // pass, fail, skip; empty while it runs
	seconds float64
	parent  bool   // has subtests
	message string // what it logged last: of a skipped test, why
}

// line is one line of output, and the test that wrote it, or nil.
type line struct {
	test *test
	text string
}

// pkgRun is one package's run.
type pkgRun struct {
	path    string
	state   string
	seconds float64
	tests   []*test // in the order in which they began
	byName  map[string]*test
	output  []line
}

// collector makes sense of the events of one go command.
type collector struct {
	pkgs   map[string]*pkgRun
	builds map[string][]line // what the compiler said, by ImportPath

	testDone func(*test)   // a test without slash in its name has ended
	pkgDone  func(*pkgRun) // a package's run has ended
}

func newCollector() *collector {
	return &collector{
		pkgs: make(map[string]*pkgRun), builds: make(map[string][]line),
		testDone: func(*test) {}, pkgDone: func(*pkgRun) {},
	}
}

// read takes events from r to its end. Lines that are none go to other.
func (c *collector) read(r io.Reader, other io.Writer) error {
	br := bufio.NewReader(r)
	for {
		b, err := br.ReadBytes('\n')
		if len(b) > 0 {
			var e event
			if json.Unmarshal(b, &e) != nil {
				if _, err := other.Write(b); err != nil {
					return err
				}
			} else {
				c.take(e)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (c *collector) take(e event) {
	if e.Action == "build-output" {
		c.builds[e.ImportPath] = append(c.builds[e.ImportPath], line{text: e.Output})
		return
	}
	if e.Package == "" {
		return
	}
	p := c.pkgs[e.Package]
	if p == nil {
		p = &pkgRun{path: e.Package, byName: make(map[string]*test)}
		c.pkgs[e.Package] = p
	}
	t := p.byName[e.Test]
	switch e.Action {
	case "run":
		p.begin(e.Test)
	case "output":
		p.write(t, e.Output)
	case "pass", "fail", "skip":
		switch {
		case t != nil:
			t.state, t.seconds = e.Action, e.Elapsed
			if !strings.Contains(t.name, "/") {
				c.testDone(t)
			}
		case e.Test == "":
			p.state, p.seconds = e.Action, e.Elapsed
			p.output = append(p.output, c.builds[e.FailedBuild]...)
			c.pkgDone(p)
		}
	}
}

func (p *pkgRun) begin(name string) {
	if p.byName[name] != nil {
		return // -count
	}
	t := &test{pkg: p.path, name: name}
	p.byName[name] = t
	p.tests = append(p.tests, t)
	// A subtest's own name may have slashes: every test that it could be of is tried.
	for i := range len(name) {
		if name[i] == '/' {
			if parent := p.byName[name[:i]]; parent != nil {
				parent.parent = true
			}
		}
	}
}

var (
	chatter = regexp.MustCompile(`^=== (RUN|PAUSE|CONT|NAME) `)
	logged  = regexp.MustCompile(`^\s*[^\s:]+\.go:\d+: (.*)`)
)

func (p *pkgRun) write(t *test, text string) {
	if chatter.MatchString(text) {
		return
	}
	p.output = append(p.output, line{t, text})
	if m := logged.FindStringSubmatch(text); m != nil && t != nil {
		t.message = m[1]
	}
}

// failures returns the tests that failed themselves, not by a subtest alone, and those that were still running when
// the package failed. If there are none in a package that failed, it is the package.
func (p *pkgRun) failures() []*test {
	var failed []*test
	for i, t := range p.tests {
		switch {
		case t.state == "" && p.state == "fail":
			// A parent that was interrupted within a subtest does not count beside it.
			if !t.parent || !p.below(i, "") {
				failed = append(failed, t)
			}
		case t.state == "fail":
			if !t.parent || !p.below(i, "fail") {
				failed = append(failed, t)
			}
		}
	}
	if p.state == "fail" && failed == nil {
		failed = append(failed, &test{pkg: p.path, state: "fail", seconds: p.seconds})
	}
	return failed
}

// below reports whether a subtest of test i is in a state.
func (p *pkgRun) below(i int, state string) bool {
	for _, s := range p.tests[i+1:] {
		if s.state == state && strings.HasPrefix(s.name, p.tests[i].name+"/") {
			return true
		}
	}
	return false
}

// explain writes what tests that failed, and no test in particular, have said.
func (p *pkgRun) explain(w io.Writer) error {
	for _, l := range p.output {
		if l.test == nil || l.test.state == "fail" || l.test.state == "" {
			if _, err := io.WriteString(w, l.text); err != nil {
				return err
			}
		}
	}
	return nil
}
