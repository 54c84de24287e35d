package appliance

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gdamore/tcell/v3"
	"github.com/gdamore/tcell/v3/vt"
	"golang.org/x/sys/unix"
)

// Waiting for all children would take those of other tests, so a process of its own is the init of this one, an orphan's adoptive
// parent (PR_SET_CHILD_SUBREAPER).
func TestMain(m *testing.M) {
	if os.Getenv("APPLIANCE_INIT") == "" {
		os.Exit(m.Run())
	}
	if err := asTestInit(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func asTestInit() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGCHLD)
	r := newReaper()
	go func() { _ = r.run(signals) }()
	j := &journal{}
	if err := r.runProgram(context.Background(), j, "/bin/sh", "-c", "sleep 0.2 & exit 0"); err != nil { // leaves an orphan
		return err
	}
	if err := r.runProgram(context.Background(), j, "/bin/sh", "-c", "exit 3"); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		return errors.Join(errors.New("the exit status is to be 3"), err)
	}
	if said, err := r.converse(j, []byte("secret"), "/bin/sh", "-c", "cat; echo complaint >&2"); err != nil || said != "secret" {
		return fmt.Errorf("cat says %q, %w", said, err)
	}
	if said, err := r.converse(j, nil, "/bin/sh", "-c", "echo why; exit 3"); err == nil || !strings.Contains(err.Error(), "exit status 3") || said != "why" {
		return fmt.Errorf("a program says %q, and its exit status is not 3: %w", said, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	starts := 0
	v := supervisor{r, j, slog.New(slog.NewTextHandler(j, nil)), func(err error) { fmt.Println("trouble:", err); cancel() }}
	v.run(ctx, Service{Name: "seat", Args: []string{"/bin/sh", "-c", "echo hello; kill -9 $$"}, Before: func(context.Context) error { starts++; return nil }})
	fmt.Println("starts:", starts)
	v.run(context.Background(), Service{Name: "once", Args: []string{"/bin/sh", "-c", "echo came"}, Once: true})
	ctx, cancel = context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	v.run(ctx, Service{Name: "long", Args: []string{"/bin/sleep", "100"}})
	fmt.Println("asked to end:", time.Since(began) < stopLimit)
	for _, l := range j.last(100) {
		fmt.Println(l)
	}
	var st unix.WaitStatus
	_, err := unix.Wait4(-1, &st, unix.WNOHANG, nil)
	fmt.Println("left:", err)
	return nil
}

// Children's ends reach who started them, orphans are reaped, and a service that dies is started again.
func TestInit(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "APPLIANCE_INIT=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"trouble: seat has ended 5 times in a row: killed by SIGKILL", "starts: 5", "seat: hello", "once: came", "asked to end: true", "left: no child processes"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestBackoff(t *testing.T) {
	var b backoff
	for i, want := range []time.Duration{backoffMin, 2 * backoffMin, 4 * backoffMin} {
		if got := b.next(0); got != want {
			t.Errorf("wait %d is %s, want %s", i, got, want)
		}
	}
	for range 20 {
		b.next(0)
	}
	if got := b.next(0); got != backoffMax {
		t.Errorf("wait after many is %s, want %s", got, backoffMax)
	}
	if got := b.next(steady); got != backoffMin || b.inARow != 1 {
		t.Errorf("after a long run: %s, %d in a row", got, b.inARow)
	}
}

// A part of the shutdown that hangs does not keep the others from being done.
func TestPerform(t *testing.T) {
	var log strings.Builder
	var done []string
	hang := make(chan struct{})
	defer close(hang)
	perform([]step{
		{"fails", time.Minute, func(context.Context) error { done = append(done, "fails"); return errors.New("no") }},
		{"hangs", 10 * time.Millisecond, func(context.Context) error { <-hang; return nil }},
		{"last", time.Minute, func(context.Context) error { done = append(done, "last"); return nil }},
	}, slog.New(slog.NewTextHandler(&log, nil)))
	if got := strings.Join(done, " "); got != "fails last" {
		t.Errorf("done: %s", got)
	}
	if s := log.String(); !strings.Contains(s, "step=hangs limit=10ms") {
		t.Errorf("log:\n%s", s)
	}
}

// testDog counts.
type testDog struct {
	mu         sync.Mutex
	fed, slept int
}

func (d *testDog) KeepAlive() error  { d.mu.Lock(); defer d.mu.Unlock(); d.fed++; return nil }
func (d *testDog) MagicClose() error { d.mu.Lock(); defer d.mu.Unlock(); d.slept++; return nil }

func TestWatchdog(t *testing.T) {
	for _, alive := range []bool{true, false} {
		d := &testDog{}
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		if err := feed(ctx, d, time.Millisecond, func() bool { return alive }); err != nil {
			t.Error(err)
		}
		cancel()
		if (d.fed > 1) != alive || d.slept != 1 {
			t.Errorf("alive %t: fed %d times, put to sleep %d times", alive, d.fed, d.slept)
		}
	}
}

func TestButton(t *testing.T) {
	event := func(kind, code uint16, value uint32) []byte {
		e := make([]byte, inputEventSize)
		binary.LittleEndian.PutUint16(e[16:], kind)
		binary.LittleEndian.PutUint16(e[18:], code)
		binary.LittleEndian.PutUint32(e[20:], value)
		return e
	}
	presses := 0
	in := bytes.Join([][]byte{event(evKey, keyPower, 1), event(0, 0, 0), event(evKey, keyPower, 0), event(evKey, 30, 1), event(evKey, keyPower, 1)}, nil)
	if err := readButton(bytes.NewReader(in), func() { presses++ }); !errors.Is(err, io.EOF) || presses != 2 {
		t.Errorf("%d presses, %v; want 2, EOF", presses, err)
	}
}

func TestJournal(t *testing.T) {
	var kmsg strings.Builder
	j := &journal{kmsg: &kmsg}
	fmt.Fprintf(j, "early \x1b[2J\n")
	path := filepath.Join(t.TempDir(), "log")
	if err := j.keep(path); err != nil {
		t.Fatal(err)
	}
	if err := copyLines(j, strings.NewReader("one\ntwo"), "seat"); err != nil {
		t.Fatal(err)
	}
	if got := kmsg.String(); got != "<6>lodge: early [2J\n<6>lodge: seat: one\n<6>lodge: seat: two\n" {
		t.Errorf("kernel's log: %q", got)
	}
	j.size = maxLog
	fmt.Fprintln(j, "three")
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{path: "three\n", path + ".1": "early [2J\nseat: one\nseat: two\n"} {
		if b, err := os.ReadFile(name); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v; want %q", filepath.Base(name), b, err, want)
		}
	}
}

func TestEmergency(t *testing.T) {
	for _, c := range []struct {
		key  string
		wait time.Duration
		want Choice
	}{{"x", 0, GoOn}, {"t", time.Hour, Retry}, {"r", time.Hour, ChooseReboot}, {"P", time.Hour, ChoosePowerOff}, {"c", time.Hour, GoOn}} {
		term := vt.NewMockTerm(vt.MockOptSize{X: 60, Y: 20}, vt.MockOptColors(0))
		s, err := tcell.NewTerminfoScreenFromTty(term)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Init(); err != nil {
			t.Fatal(err)
		}
		p := &page{problem: "the state partition /dev/vda2 cannot be written to: what changes is kept in RAM", log: func(int) []string { return []string{"last words"} },
			until: time.Now().Add(c.wait)}
		p.draw(s)
		shown := rows(term, 60, 20)
		for _, want := range []string{"something is wrong", "cannot be written to:", "kept in RAM", "last words", "t try again"} {
			if !strings.Contains(shown, want) {
				t.Fatalf("no %q in\n%s", want, shown)
			}
		}
		if c.wait > 0 {
			s.EventQ() <- tcell.NewEventKey(tcell.KeyRune, c.key, tcell.ModNone)
		}
		if got := p.show(context.Background(), s); got != c.want {
			t.Errorf("key %s: %d, want %d", c.key, got, c.want)
		}
	}
}

// typed sends keys to a screen.
func typed(s tcell.Screen, keys ...string) {
	for _, k := range keys {
		switch k {
		case "Enter":
			s.EventQ() <- tcell.NewEventKey(tcell.KeyEnter, "", tcell.ModNone)
		case "Esc":
			s.EventQ() <- tcell.NewEventKey(tcell.KeyEscape, "", tcell.ModNone)
		case "Backspace":
			s.EventQ() <- tcell.NewEventKey(tcell.KeyBackspace2, "", tcell.ModNone)
		case "Ctrl+U":
			s.EventQ() <- tcell.NewEventKey(tcell.KeyCtrlU, "", tcell.ModCtrl)
		default:
			for _, r := range k {
				s.EventQ() <- tcell.NewEventKey(tcell.KeyRune, string(r), tcell.ModNone)
			}
		}
	}
}

func TestQuestion(t *testing.T) {
	for _, c := range []struct {
		name   string
		fields []string
		keys   []string
		tried  []string
		want   bool
	}{
		{"the right one", []string{"Passphrase"}, []string{"secret", "Enter"}, []string{"secret"}, true},
		{"after a wrong one", []string{"Passphrase"}, []string{"wrong", "Enter", "Enter", "secret", "Enter"}, []string{"wrong", "secret"}, true},
		{"corrected", []string{"Passphrase"}, []string{"oh", "Ctrl+U", "sexé", "Backspace", "Backspace", "Backspace", "ecret", "Enter"}, []string{"secret"}, true},
		{"given up", []string{"Passphrase"}, []string{"wrong", "Enter", "sec", "Esc"}, []string{"wrong"}, false},
		{"a new one", []string{"New", "Again"}, []string{"secret", "Enter", "secret", "Enter"}, []string{"secret"}, true},
		{"a new one that differs", []string{"New", "Again"}, []string{"secret", "Enter", "secreT", "Enter", "secret", "Enter", "secret", "Enter"}, []string{"secret"}, true},
	} {
		s, err := tcell.NewTerminfoScreenFromTty(vt.NewMockTerm(vt.MockOptSize{X: 60, Y: 20}, vt.MockOptColors(0)))
		if err == nil {
			err = s.Init()
		}
		if err != nil {
			t.Fatal(err)
		}
		var tried []string
		q := &question{title: "title", text: "text", fields: c.fields, try: func(p []byte) error {
			tried = append(tried, string(p))
			if string(p) != "secret" {
				return errors.New("wrong")
			}
			return nil
		}}
		go typed(s, c.keys...)
		if got := q.show(t.Context(), s); got != c.want || !slices.Equal(tried, c.tried) {
			t.Errorf("%s: %v after %q, want %v after %q", c.name, got, tried, c.want, c.tried)
		}
		s.Fini()
	}
}

// What is typed is not on the screen; what went wrong is.
func TestQuestionDrawn(t *testing.T) {
	term := vt.NewMockTerm(vt.MockOptSize{X: 60, Y: 20}, vt.MockOptColors(0))
	s, err := tcell.NewTerminfoScreenFromTty(term)
	if err == nil {
		err = s.Init()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer s.Fini()
	q := &question{title: "The state is encrypted", text: "Its TPM was cleared.", fields: []string{"Passphrase"}, keys: "Enter opens", typed: [][]byte{[]byte("hidé")}, problem: "that was wrong"}
	q.draw(s)
	shown := rows(term, 60, 20)
	for _, want := range []string{"The state is encrypted", "Its TPM was cleared.", "Passphrase: ****_", "that was wrong", "Enter opens"} {
		if !strings.Contains(shown, want) {
			t.Errorf("no %q in\n%s", want, shown)
		}
	}
	if strings.Contains(shown, "hid") {
		t.Errorf("the passphrase is on the screen:\n%s", shown)
	}
}

// rows returns the text on a terminal.
func rows(term vt.MockTerm, w, h int) string {
	var shown strings.Builder
	for y := range vt.Row(h) {
		for x := range vt.Col(w) {
			shown.WriteString(cmp.Or(term.GetCell(vt.Coord{X: x, Y: y}).C, " "))
		}
		shown.WriteString("\n")
	}
	return shown.String()
}

func TestFiles(t *testing.T) {
	files := make(map[string]string)
	if err := addProgram(files, "/usr/sbin/mke2fs"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"usr/sbin/mke2fs", "lib64/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu/libc.so.6", "lib/x86_64-linux-gnu/libext2fs.so.2"} {
		if files[want] == "" {
			t.Errorf("no %s among %v", want, files)
		}
	}
	if _, err := Files(t.TempDir()); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("no programs: %v", err)
	}
}
