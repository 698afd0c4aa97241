//! Tests that run one after the other, may be skipped with a reason, and show the logs when they fail.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    process::ExitCode,
    sync::{LazyLock, Mutex, PoisonError},
};

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tokio::runtime::Runtime;

/// Lines of a log that are shown with a failed test.
const LOG_LINES: usize = 60;

/// One runtime for all tests: what a shared cluster started in it must outlive the test that came first.
#[expect(clippy::expect_used, reason = "without a runtime no test can run, and the message says so")]
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("start a tokio runtime"));

/// What clusters wrote during the test that runs.
static LOGS: Mutex<String> = Mutex::new(String::new());

/// A test cannot run here.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Skip(pub String);

/// Ends a test as skipped.
///
/// # Errors
/// Always: the reason.
pub fn skip<T>(why: &str) -> Result<T> {
    Err(Skip(why.to_owned()).into())
}

/// The named test functions as trials.
#[macro_export]
macro_rules! trials {
    ($($name:ident),* $(,)?) => {
        vec![$($crate::harness::trial(concat!(module_path!(), "::", stringify!($name)), $name)),*]
    };
}

/// One test. Its name is the path without the crate.
pub fn trial<F: Future<Output = Result<()>>>(path: &str, test: impl FnOnce() -> F + Send + 'static) -> Trial {
    let name = path.split_once("::").map_or(path, |(_, rest)| rest).to_owned();
    Trial::ignorable_test(name.clone(), move || {
        drop(logs());
        match catch_unwind(AssertUnwindSafe(|| RUNTIME.block_on(test()))) {
            Ok(Ok(())) => Ok(Completion::Completed),
            Ok(Err(error)) => match error.downcast::<Skip>() {
                Ok(Skip(why)) => Ok(skipped(&name, &why)),
                Err(error) => Err(Failed::from(format!("{error:#}\n{}", logs()))),
            },
            Err(panic) => {
                show(&logs());
                resume_unwind(panic)
            }
        }
    })
}

/// Runs the tests, or skips all of them where `unfit` says why they cannot run here; `after` ends what they share.
pub fn run(unfit: Option<&str>, tests: Vec<Trial>, after: impl FnOnce() -> Result<()>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Cgroups, BPF hooks and processors are the machine's: side by side, tests would measure each other.
    arguments.test_threads = Some(1);
    let tests = match unfit {
        None => tests,
        Some(why) => tests.into_iter().map(|test| skipping(test.name(), why)).collect(),
    };
    let conclusion = libtest_mimic::run(&arguments, tests);
    if let Err(error) = after() {
        show(&format!("after the tests: {error:#}\n{}", logs()));
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

/// Runs something on the tests' runtime.
pub fn block_on<F: Future>(future: F) -> F::Output {
    RUNTIME.block_on(future)
}

fn skipping(name: &str, why: &str) -> Trial {
    let (name, why) = (name.to_owned(), why.to_owned());
    Trial::ignorable_test(name.clone(), move || Ok(skipped(&name, &why)))
}

fn skipped(name: &str, why: &str) -> Completion {
    show(&format!("SKIP {name}: {why}"));
    Completion::ignored_with(why)
}

#[expect(clippy::print_stdout, reason = "part of a test's output")]
fn show(text: &str) {
    println!("{text}");
}

/// Keeps the end of a log for the case that the test fails.
pub(crate) fn remember(whose: &str, log: &str) {
    let lines: Vec<_> = log.lines().collect();
    let mut kept = LOGS.lock().unwrap_or_else(PoisonError::into_inner);
    *kept += &format!("--- the end of the {whose}'s log\n");
    *kept += &lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
    kept.push('\n');
}

/// Takes what was kept.
fn logs() -> String {
    std::mem::take(&mut *LOGS.lock().unwrap_or_else(PoisonError::into_inner))
}
