//! The Go programs of the interop tests can be built. `.ci/run` runs this before the tests that use them,
//! because a first build takes longer than a scenario may.

use towline_tests::konnectivity::programs::Program;

#[ignore = "needs Go"]
#[test]
fn the_programs_of_the_interop_tests_build() {
    for program in Program::ALL {
        let path = program
            .build()
            .unwrap_or_else(|error| panic!("{program:?}: {error}"));
        assert!(path.exists());
    }
}
