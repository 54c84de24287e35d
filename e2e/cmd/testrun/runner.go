package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// job is one go test command.
type job struct {
	args []string // after go test -json
}

// runner runs jobs, tells how they go, and fills in the report.
type runner struct {
	dir   string // where go runs; empty is here
	out   io.Writer
	skips []skip

	mu     sync.Mutex // one job writes at a time
	report *report
}

func (r *runner) printf(format string, args ...any) { fmt.Fprintf(r.out, format, args...) }

// stage runs the jobs of a stage, so many at a time.
func (r *runner) stage(ctx context.Context, name string, jobs []job, workers int) {
	s := &stage{Name: name}
	r.mu.Lock()
	r.printf("== %s\n", name)
	r.report.Stages = append(r.report.Stages, s)
	r.mu.Unlock()
	begin := time.Now()
	queue := make(chan job)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for j := range queue {
				r.job(ctx, s, j)
			}
		})
	}
	for _, j := range jobs {
		queue <- j
	}
	close(queue)
	wg.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	s.Seconds = seconds(time.Since(begin))
	if s.Passed+s.Failed+s.Skipped == 0 && ctx.Err() == nil {
		r.printf("no tests in stage %s\n", name)
		r.report.fail(s, &test{name: "no tests"})
	}
}

// images begins to build the images that stage e2e needs. Its tests wait for what they need, and build what is not there: so
// they tell if something goes wrong with it. The function that is returned ends it.
func (r *runner) images(ctx context.Context) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, "nice", "-n19", "go", "run", "./e2e/cmd/e2e-image")
	cmd.Dir = r.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	if err := cmd.Start(); err != nil {
		cancel()
		return func() {}
	}
	return func() {
		cancel()
		_ = cmd.Wait()
	}
}

// job runs one command to its end.
func (r *runner) job(ctx context.Context, s *stage, j job) {
	if ctx.Err() != nil {
		return
	}
	failed, forgiven := 0, false
	c := newCollector()
	c.pkgDone = func(p *pkgRun) {
		if s.Name == "fuzz" && p.forgiveDeadline() {
			forgiven = true
		}
		failed += r.tally(s, p)
	}
	if s.Name == "e2e" {
		c.testDone = func(t *test) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.printf("      %-4s %s  %.1f s\n", t.state, t.name, t.seconds)
		}
	}
	goTest := []string{"go", "test", "-json"}
	if s.Name == "fuzz" { // beside e2e: it takes what that leaves
		goTest = slices.Concat([]string{"nice", "-n19"}, goTest)
	}
	err := r.command(ctx, slices.Concat(goTest, j.args), c)
	if err != nil && failed == 0 && !forgiven && ctx.Err() == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.printf("FAIL  go test %s: %v\n", strings.Join(j.args, " "), err)
		r.report.fail(s, &test{name: "go test"})
	}
}

// command runs a command and has c read its events. When ctx ends, it, the tests and what they have started are interrupted,
// and killed if that does not end them.
func (r *runner) command(ctx context.Context, args []string, c *collector) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = r.dir
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	kill := context.AfterFunc(ctx, func() {
		time.AfterFunc(15*time.Second, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	})
	defer kill()
	err = c.read(out, os.Stderr)
	return errors.Join(err, cmd.Wait())
}

// tally tells and counts how a package's run went. It returns how many tests failed.
func (r *runner) tally(s *stage, p *pkgRun) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	failed := p.failures()
	var passed, skipped int
	for _, t := range p.tests {
		if t.parent {
			continue
		}
		switch t.state {
		case "pass":
			passed++
		case "skip":
			skipped++
			k := skipRecord{testRecord: s.record(t), Reason: t.message, Allowed: allowed(r.skips, t.message)}
			r.report.Skips = append(r.report.Skips, k)
			if !k.Allowed {
				r.printf("      %s skips though this machine gives it no reason that .ci/skips declares: %q\n", t.name, t.message)
				failed = append(failed, t)
				skipped--
			}
		}
	}
	verdict := "ok"
	if len(failed) > 0 {
		verdict = "FAIL"
		if err := p.explain(r.out); err != nil {
			r.printf("%v\n", err)
		}
	}
	name := short(p.path)
	if s.Name == "fuzz" && len(p.tests) > 0 {
		name += "." + p.tests[0].name
	}
	r.printf("%-4s  %-40s %6.1f s  %d passed", verdict, name, p.seconds, passed)
	if len(failed) > 0 {
		r.printf(", %d failed", len(failed))
	}
	if skipped > 0 {
		r.printf(", %d skipped", skipped)
	}
	r.printf("\n")
	r.report.count(s, passed, skipped)
	for _, t := range failed {
		r.report.fail(s, t)
	}
	for _, t := range p.tests {
		r.report.time(s, t)
	}
	return len(failed)
}

// forgiveDeadline turns a failure into what it is if all that went wrong is that the time was over: Go's fuzzing engine
// before 1.27 may report its own deadline as the target's failure (go.dev/issue/75804). An input that fails is written
// to a file, and the output says so. It reports whether it did.
func (p *pkgRun) forgiveDeadline() bool {
	if p.state != "fail" || len(p.tests) != 1 || p.tests[0].state != "fail" {
		return false
	}
	deadline := false
	for _, l := range p.output {
		switch text := strings.TrimSpace(l.text); {
		case text == "context deadline exceeded":
			deadline = true
		case strings.Contains(text, "Failing input written to"), strings.HasPrefix(text, "panic:"), logged.MatchString(l.text):
			return false
		}
	}
	if deadline {
		p.state, p.tests[0].state = "pass", "pass"
	}
	return deadline
}

// seconds rounds d to milliseconds, for people who read out/test.json.
func seconds(d time.Duration) float64 { return d.Round(time.Millisecond).Seconds() }

// makeDir makes the directory of a file that is to be written.
func makeDir(file string) error { return os.MkdirAll(filepath.Dir(file), 0o755) }
