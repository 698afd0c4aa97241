//! Tests that run one after the other, may be skipped with a reason, and show the logs when they fail.

use std::{
    fs,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tokio::runtime::Runtime;

use crate::{Cluster, Options};

/// Lines of a log that are shown with a failed test.
const LOG_LINES: usize = 60;

/// One runtime for all tests: what a shared cluster started in it must outlive the test that came first.
#[expect(clippy::expect_used, reason = "without a runtime no test can run, and the message says so")]
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("start a tokio runtime"));

/// What clusters wrote during the test that runs.
static LOGS: Mutex<Logs> = Mutex::new(Logs { live: Vec::new(), kept: String::new() });

struct Logs {
    live: Vec<PathBuf>,
    kept: String,
}

impl Logs {
    fn keep(&mut self, path: &Path) {
        let text = fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        self.kept += &format!("--- the end of {}\n", path.display());
        self.kept += &lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        self.kept.push('\n');
    }
}

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
                Err(error) => {
                    show(&format!("{error:#}\n{}", logs()));
                    Err(Failed::from(format!("{error:#}")))
                }
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

/// From now on a test that fails shows the end of this file.
pub(crate) fn watch_log(path: &Path) {
    LOGS.lock().unwrap_or_else(PoisonError::into_inner).live.push(path.to_owned());
}

/// The file is about to go away: keeps its end for the test that runs.
pub(crate) fn unwatch_log(path: &Path) {
    let mut logs = LOGS.lock().unwrap_or_else(PoisonError::into_inner);
    logs.live.retain(|live| live != path);
    logs.keep(path);
}

/// Takes what was kept, and the ends of the logs that are being written.
fn logs() -> String {
    let mut logs = LOGS.lock().unwrap_or_else(PoisonError::into_inner);
    for path in logs.live.clone() {
        logs.keep(&path);
    }
    std::mem::take(&mut logs.kept)
}

/// A cluster for several tests, started by the first that needs it.
pub struct Shared {
    options: fn() -> Options,
    cluster: tokio::sync::Mutex<Option<Arc<Cluster>>>,
}

impl Shared {
    /// With these options.
    pub const fn new(options: fn() -> Options) -> Self {
        Self { options, cluster: tokio::sync::Mutex::const_new(None) }
    }

    /// The cluster.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn get(&self) -> Result<Arc<Cluster>> {
        let mut cluster = self.cluster.lock().await;
        if let Some(running) = &*cluster {
            return Ok(Arc::clone(running));
        }
        let started = Arc::new(Cluster::start((self.options)()).await?);
        Ok(Arc::clone(cluster.insert(started)))
    }

    /// Ends the cluster, once all tests are over, and checks that nothing is left.
    ///
    /// # Errors
    /// Names what is left.
    pub async fn finish(&self) -> Result<()> {
        let Some(cluster) = self.cluster.lock().await.take() else { return Ok(()) };
        Arc::into_inner(cluster).context("a test still uses the cluster")?.finish().await
    }
}
