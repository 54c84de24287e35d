package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestResult(t *testing.T) {
	ctx := t.Context()
	b := &Builder{Dir: t.TempDir()}
	broken := errors.New("broken")
	builds := 0
	get := func(key string, fail error) (string, error) {
		return b.Result(ctx, "thing", key, func(_ context.Context, dir string) error {
			builds++
			return errors.Join(os.WriteFile(filepath.Join(dir, "f"), []byte(key), 0o644), fail)
		})
	}
	if _, err := get(Key("1"), broken); !errors.Is(err, broken) {
		t.Fatalf("error %v, want that of the build", err)
	}
	left, err := filepath.Glob(filepath.Join(b.Dir, "*thing-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("a failed build left %v, %v", left, err)
	}
	for range 2 {
		dir, err := get(Key("1"), nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(dir, "f"))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(Key("1"), string(got)); d != "" {
			t.Error(d)
		}
	}
	if _, err := get(Key("2"), nil); err != nil {
		t.Fatal(err)
	}
	if builds != 3 {
		t.Errorf("%d builds, want 3: one that failed and one for each key", builds)
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := Lock(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*lockRetry)
	defer cancel()
	waited := 0
	if _, err := Lock(ctx, path, func() { waited++ }); !errors.Is(err, context.DeadlineExceeded) || waited != 1 {
		t.Errorf("a lock that is held: %v after %d calls of wait", err, waited)
	}
	unlock()
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	unlock, err = Lock(ctx, path, nil)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestKey(t *testing.T) {
	if Key("ab", "c") == Key("a", "bc") {
		t.Error("parts run into each other")
	}
}
