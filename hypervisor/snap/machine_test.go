package snap

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// part is a Component that logs what happens to it.
type part struct {
	id      string
	version uint16
	value   uint32
	log     *[]string
	fail    string // the operation that fails
}

var errPart = errors.New("does not want to")

func (p *part) did(op string) error {
	*p.log = append(*p.log, op+" "+p.id)
	if p.fail == op {
		return errPart
	}
	return nil
}

func (p *part) SnapID() string      { return p.id }
func (p *part) SnapVersion() uint16 { return p.version }
func (p *part) Pause() error        { return p.did("pause") }
func (p *part) Resume() error       { return p.did("resume") }
func (p *part) State(c *Codec) {
	if p.did("state") != nil {
		c.Fail("%w", errPart)
	}
	c.U32(&p.value)
}

// board returns three parts and their common log.
func board() (a, b, c *part, all []Component, log *[]string) {
	log = new([]string)
	a, b, c = &part{id: "a", version: 1, value: 1, log: log}, &part{id: "b", version: 2, value: 2, log: log}, &part{id: "c", version: 3, value: 3, log: log}
	return a, b, c, []Component{a, b, c}, log
}

func savedBoard(t *testing.T) *File {
	t.Helper()
	_, _, _, all, _ := board()
	s, err := SaveAll(all, Section{ID: "vcpu.0", Version: 1, Data: []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	f, err := Decode(encode(t, &File{Sections: s}))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestSaveLoad(t *testing.T) {
	f := savedBoard(t)
	a, b, c, all, log := board()
	a.value, b.value, c.value = 0, 0, 0
	b.version = 5 // reads older states
	if err := LoadAll(f, all, "vcpu.0"); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]uint32{1, 2, 3}, []uint32{a.value, b.value, c.value}); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"state a", "state b", "state c"}, *log); d != "" {
		t.Error(d)
	}
}

func TestSaveAllRefuses(t *testing.T) {
	a, b, _, all, _ := board()
	b.fail = "state"
	if _, err := SaveAll(all); !errors.Is(err, errPart) || !strings.Contains(err.Error(), "save b") {
		t.Error("failing component:", err)
	}
	b.fail, a.id = "", "b"
	if _, err := SaveAll(all); err == nil {
		t.Error("one id twice: saved")
	}
}

func TestLoadAllRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(f *File, a, b, c *part)
		extra  []string
		err    error
		says   string
		begun  bool // components were already decoding
	}{
		{name: "component missing", change: func(f *File, a, b, c *part) { f.Sections = f.Sections[1:] }, err: ErrMismatch, says: "restore a"},
		{name: "component unknown", change: func(f *File, a, b, c *part) { f.Sections = append(f.Sections, Section{ID: "gpu"}) }, err: ErrMismatch, says: "gpu"},
		{name: "extra missing", extra: []string{"vcpu.0", "vcpu.1"}, err: ErrMismatch, says: "vcpu.1"},
		{name: "extra unknown", extra: []string{}, err: ErrMismatch, says: "vcpu.0"},
		{name: "version 0", change: func(f *File, a, b, c *part) { f.Sections[2].Version = 0 }, err: ErrDamaged, says: "restore c"},
		{name: "newer", change: func(f *File, a, b, c *part) { c.version = 2 }, err: ErrNewer, says: "restore c"},
		{name: "section twice", change: func(f *File, a, b, c *part) { f.Sections = append(f.Sections, f.Sections[0]) }, err: ErrDamaged, says: `"a"`},
		{name: "component twice", change: func(f *File, a, b, c *part) { b.id = "a" }, says: "restore a"},
		{name: "state refused", change: func(f *File, a, b, c *part) { b.fail = "state" }, err: errPart, says: "restore b", begun: true},
		{name: "state too short", change: func(f *File, a, b, c *part) { f.Sections[1].Data = nil }, says: "restore b", begun: true},
		{name: "state too long", change: func(f *File, a, b, c *part) { f.Sections[1].Data = make([]byte, 5) }, says: "restore b", begun: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := savedBoard(t)
			a, b, c, all, log := board()
			if tt.change != nil {
				tt.change(f, a, b, c)
			}
			if tt.extra == nil {
				tt.extra = []string{"vcpu.0"}
			}
			err := LoadAll(f, all, tt.extra...)
			if err == nil || tt.err != nil && !errors.Is(err, tt.err) || !strings.Contains(fmt.Sprint(err), tt.says) {
				t.Errorf("LoadAll = %v, want %v and %q", err, tt.err, tt.says)
			}
			if begun := len(*log) > 0; begun != tt.begun {
				t.Errorf("components touched: %v", *log)
			}
		})
	}
}

func TestPauseResume(t *testing.T) {
	for _, tt := range []struct {
		name string
		fail string // the operation of b that fails
		run  func([]Component) error
		want []string
	}{
		{"pause", "", PauseAll, []string{"pause a", "pause b", "pause c"}},
		{"resume", "", ResumeAll, []string{"resume c", "resume b", "resume a"}},
		{"pause fails", "pause", PauseAll, []string{"pause a", "pause b", "resume a"}},
		{"resume fails", "resume", ResumeAll, []string{"resume c", "resume b", "pause c"}},
	} {
		_, b, _, all, log := board()
		b.fail = tt.fail
		if err := tt.run(all); (tt.fail == "") != (err == nil) || err != nil && !errors.Is(err, errPart) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if d := cmp.Diff(tt.want, *log); d != "" {
			t.Errorf("%s: %s", tt.name, d)
		}
	}
}
