// Command testrun runs all of Lodge's tests and says in its last line how many passed, failed and were skipped.
//
// It runs three stages and goes on after a failure:
//
//	unit   every package's tests that run on this machine directly, with the race detector: rungs 1 and 2
//	fuzz   each fuzz target for -fuzztime
//	e2e    tests that start the simulated notebook, one package after another: rung 3
//
// The notebook's images are built while unit runs, and fuzz runs beside e2e: both with the lowest priority.
//
// A package belongs to e2e if its tests can reach the package e2e/notebook or e2e/image. What counts is a leaf: a test
// or subtest that has no subtests; a fuzz target counts once more for its run in stage fuzz. A skip is allowed for the
// reasons that .ci/skips declares, where their conditions hold; any other skip fails the run, as does a stage without
// tests. A summary with the slowest tests goes to out/test.json.
package main
