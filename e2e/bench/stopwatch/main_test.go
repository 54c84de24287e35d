package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	// The command never ends by itself: it is killed.
	var out strings.Builder
	begin := time.Now()
	if err := run([]string{"here", "sh", "-c", "echo before; echo it is here now; exec sleep 600"}, &out); err != nil {
		t.Fatal(err)
	}
	var r reading
	if err := json.Unmarshal([]byte(out.String()), &r); err != nil || r.NS <= 0 || time.Duration(r.NS) > time.Since(begin) {
		t.Errorf("%s: %d ns, %v", &out, r.NS, err)
	}
	for _, args := range [][]string{{"here"}, {"here", "true"}, {"here", "/no/such/program"}} {
		if err := run(args, &out); err == nil {
			t.Errorf("run %q succeeded", args)
		}
	}
}
