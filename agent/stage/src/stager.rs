//! All artifacts of a task, several at once, into its sandbox or not at all.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream};

use crate::{
    beneath::{Beneath, Inside},
    budget::{Budget, Limits, Spent, Stop},
    cache::{Cache, CacheError, CacheUse},
    copy,
    digest::{Algorithm, Digest},
    error::{Problem, StageError},
    fetch::{Fetcher, Wanted},
    identity::{Owner, as_owner},
    planned::{Planned, Source, Target},
    progress::{Phase, Progress, Step},
    unpack::{Made, Unpacker},
};

/// How many artifacts of one task are worked on at the same time.
const AT_ONCE: usize = 4;
/// Computed where nobody asked for a digest.
const DEFAULT_ALGORITHM: Algorithm = Algorithm::Sha256;

/// What the operator of the agent decides.
#[derive(Clone, Debug)]
pub struct StageConfig {
    /// The cache's directory.
    pub cache_dir: PathBuf,
    /// Its bound.
    pub cache_max_bytes: u64,
    /// Directories of this host that every task may have files of. The agent reads them as root.
    pub local_dirs: Vec<PathBuf>,
    /// Longest file that is fetched.
    pub fetch_max_bytes: u64,
    /// Longest time of one fetch, repetitions included.
    pub fetch_timeout: Duration,
    /// Certificates that are trusted besides the host's.
    pub ca_file: Option<PathBuf>,
}

/// One task's artifacts.
pub struct Request {
    /// What, from [`crate::check_all`].
    pub artifacts: Vec<Planned>,
    /// The directory that they go to. It is the owner's.
    pub into: PathBuf,
    /// Whose they become.
    pub owner: Owner,
    /// What they may take.
    pub limits: Limits,
    /// Who wants to know.
    pub progress: Arc<dyn Progress>,
}

/// Stages artifacts. One for each agent, for all tasks.
#[derive(Clone, Debug)]
pub struct Stager(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    cache: Cache,
    fetcher: Fetcher,
    config: StageConfig,
}

/// What the artifacts of one task share.
struct Run {
    shared: Arc<Shared>,
    into: Arc<Beneath>,
    owner: Owner,
    limits: Limits,
    budget: Arc<Budget>,
    stop: Stop,
    progress: Arc<dyn Progress>,
}

impl Stager {
    /// A stager with its cache, from which it removes what a crash left. Blocks.
    ///
    /// # Errors
    /// When the cache's directory cannot be used.
    pub fn new(config: StageConfig) -> Result<Self, CacheError> {
        let cache = Cache::open(config.cache_dir.clone(), config.cache_max_bytes)?;
        let fetcher = Fetcher::new(config.ca_file.clone(), config.fetch_timeout);
        Ok(Self(Arc::new(Shared { cache, fetcher, config })))
    }

    /// How much good the cache does.
    pub fn cache_use(&self) -> CacheUse {
        self.0.cache.usage()
    }

    /// Longest file that is fetched.
    pub fn fetch_max_bytes(&self) -> u64 {
        self.0.config.fetch_max_bytes
    }

    /// Puts every artifact into the sandbox; on a failure, or when `cancelled` ends first, none of them stays.
    ///
    /// # Errors
    /// That of the first artifact, in their order, that failed; [`Problem::stopped`] where it was cancelled.
    pub async fn stage(
        &self,
        request: Request,
        cancelled: impl Future<Output = ()>,
    ) -> Result<(), StageError> {
        let Some(first) = request.artifacts.first().map(|a| a.shown.clone()) else { return Ok(()) };
        let into = Beneath::open(&request.into);
        let into = into.map_err(|e| StageError { shown: first, problem: Problem::Place(e) })?;
        let names: Vec<String> = request.artifacts.iter().map(|a| a.shown.clone()).collect();
        let run = Arc::new(Run {
            shared: Arc::clone(&self.0),
            into: Arc::new(into),
            owner: request.owner,
            limits: request.limits,
            budget: Arc::new(Budget::new(request.limits)),
            stop: Stop::new(),
            progress: request.progress,
        });
        // Where this future is dropped, the threads that still write end soon too.
        let stop_all = StopAll(run.stop.clone());
        let jobs = stream::iter(request.artifacts.into_iter().enumerate())
            .map(|(index, artifact)| Arc::clone(&run).artifact(index, artifact))
            .buffer_unordered(AT_ONCE);
        let all = jobs.collect::<Vec<_>>();
        tokio::pin!(all, cancelled);
        let mut results = tokio::select! {
            results = &mut all => results,
            () = &mut cancelled => {
                stop_all.0.from(0);
                all.await
            }
        };
        results.sort_by_key(|(index, ..)| *index);
        let made = results.iter_mut().map(|(_, made, _)| std::mem::take(made)).collect();
        let failure = results.into_iter().find_map(|(index, _, result)| {
            let problem = result.err()?;
            Some(StageError { shown: names[index].clone(), problem })
        });
        match failure {
            None => Ok(()),
            Some(error) => {
                run.undo(made).await;
                Err(error)
            }
        }
    }
}

struct StopAll(Stop);

impl Drop for StopAll {
    fn drop(&mut self) {
        self.0.from(0);
    }
}

impl Run {
    async fn artifact(
        self: Arc<Self>,
        index: usize,
        artifact: Planned,
    ) -> (usize, Made, Result<(), Problem>) {
        let fetched = tokio::select! {
            biased;
            () = self.stop.wait(index) => Err(Spent::Stopped.into()),
            fetched = self.source(index, &artifact) => fetched,
        };
        let (made, result) = match fetched {
            Ok(source) => self.place(index, &artifact, source).await,
            Err(problem) => (Made::default(), Err(problem)),
        };
        if result.is_err() {
            self.stop.from(index + 1);
        } else {
            self.progress.step(Step {
                artifact: index,
                phase: Phase::Done,
                done_bytes: 0,
                total_bytes: None,
            });
        }
        (index, made, result)
    }

    /// The artifact's bytes as an open file, with the digest that is still to be checked while it is copied.
    async fn source(&self, index: usize, artifact: &Planned) -> Result<Opened, Problem> {
        let progress = Arc::clone(&self.progress);
        let fetching = move |done_bytes, total_bytes| {
            progress.step(Step { artifact: index, phase: Phase::Fetching, done_bytes, total_bytes });
        };
        let (cache, stop) = (&self.shared.cache, self.stop.clone());
        match (&artifact.source, &artifact.digest) {
            (Source::Local(path), digest) => {
                let file = self.local(path).await?;
                // A file is verified while it is copied. An archive before it is looked at, in a copy that nobody
                // can change: a zip file is not read from its start to its end.
                let Some(digest) =
                    digest.as_ref().filter(|_| matches!(artifact.target, Target::Unpacked { .. }))
                else {
                    return Ok(Opened { file, unchecked: digest.clone() });
                };
                let fill = async |target: &File, _: &Path| {
                    verify_copy(file, target, digest.algorithm(), path, stop, index, fetching).await
                };
                Ok(Opened { file: cache.get(digest, fill).await?, unchecked: None })
            }
            (Source::Web(url), digest) => {
                let algorithm = digest.as_ref().map_or(DEFAULT_ALGORITHM, Digest::algorithm);
                let max_bytes = self.shared.config.fetch_max_bytes.min(self.limits.bytes);
                let wanted = Wanted { url, max_bytes, algorithm };
                let fetcher = &self.shared.fetcher;
                let file = match digest {
                    Some(digest) => {
                        let fill = async |target: &File, path: &Path| {
                            fetcher.fetch(&wanted, target, path, &fetching).await
                        };
                        cache.get(digest, fill).await?
                    }
                    None => {
                        let mut file = cache.scratch()?;
                        fetcher.fetch(&wanted, &file, cache.root(), &fetching).await?;
                        let rewound = io::Seek::rewind(&mut file);
                        rewound.map_err(|e| Problem::caching("read", cache.root().to_owned(), e))?;
                        file
                    }
                };
                Ok(Opened { file, unchecked: None })
            }
        }
    }

    /// A file of this host, if the operator opened its directory. No link below that directory is followed.
    async fn local(&self, path: &Path) -> Result<File, Problem> {
        let dirs = &self.shared.config.local_dirs;
        // By its parts, so /srv/a/../../etc/x lies in no directory.
        let allowed = dirs.iter().find_map(|dir| {
            let rest = path.strip_prefix(dir).ok()?;
            Some((dir.clone(), Inside::new(rest).ok()?))
        });
        let Some((dir, rest)) = allowed else { return Err(Problem::NotAllowed(path.to_owned())) };
        let path = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || {
            // The operator's own directory may be a link.
            let dir = Beneath::open(&dir.canonicalize()?)?;
            Ok(dir.read(&rest)?)
        });
        opened
            .await
            .map_err(io::Error::other)
            .and_then(|r| r)
            .map_err(|source| Problem::Read { path, source })
    }

    /// Into the sandbox, as the task's user.
    async fn place(&self, index: usize, artifact: &Planned, source: Opened) -> (Made, Result<(), Problem>) {
        let (into, budget, stop) = (Arc::clone(&self.into), Arc::clone(&self.budget), self.stop.clone());
        let progress = Arc::clone(&self.progress);
        let target = artifact.target.clone();
        let path = self.into.path().to_owned();
        let placed = as_owner(self.owner, move || {
            let total = source.file.metadata().ok().map(|m| m.len());
            let total_bytes = if matches!(target, Target::File { .. }) { total } else { None };
            let mut done_bytes = 0;
            let mut piece = |bytes: u64| {
                done_bytes += bytes;
                progress.step(Step { artifact: index, phase: Phase::Placing, done_bytes, total_bytes });
                stop.check(index)
            };
            match target {
                Target::File { at, executable } => {
                    let mut made = Made::default();
                    let result = place_file(&into, &at, executable, source, &budget, &mut piece, &mut made);
                    (made, result)
                }
                Target::Unpacked { below: None } => unpack(&into, source, &budget, &mut piece),
                Target::Unpacked { below: Some(below) } => {
                    unpack_below(&into, &below, source, &budget, &mut piece)
                }
            }
        });
        placed.await.unwrap_or_else(|source| {
            let step = "start a thread for";
            (Made::default(), Err(Problem::Io { step, path, source }))
        })
    }

    async fn undo(&self, made: Vec<Made>) {
        let into = Arc::clone(&self.into);
        let removed = as_owner(self.owner, move || {
            // All files before any directory: several archives may share some.
            for made in &made {
                Made { files: made.files.clone(), dirs: Vec::new() }.remove(&into);
            }
            for made in made.iter().rev() {
                Made { files: Vec::new(), dirs: made.dirs.clone() }.remove(&into);
            }
        });
        if let Err(error) = removed.await {
            tracing::warn!(%error, path = %self.into.path().display(), "remove what was staged");
        }
    }
}

/// An artifact's bytes.
struct Opened {
    file: File,
    /// To be found while it is copied.
    unchecked: Option<Digest>,
}

/// Copies a local file into the cache and says what it is.
async fn verify_copy(
    source: File,
    target: &File,
    algorithm: Algorithm,
    path: &Path,
    stop: Stop,
    index: usize,
    progress: impl Fn(u64, Option<u64>) + Send + 'static,
) -> Result<Digest, Problem> {
    let failed = |source| Problem::caching("copy to the artifact cache", path.to_owned(), source);
    let target = target.try_clone().map_err(failed)?;
    let copied = tokio::task::spawn_blocking(move || {
        let total = source.metadata().ok().map(|m| m.len());
        let mut done = 0;
        copy::copy_hashed(&source, &target, algorithm, |bytes| {
            done += bytes;
            progress(done, total);
            stop.check(index)
        })
    });
    match copied.await.map_err(|e| failed(io::Error::other(e)))? {
        Ok((_, digest)) => Ok(digest),
        Err(copy::CopyError::Io(source)) => Err(failed(source)),
        Err(copy::CopyError::Refused(spent)) => Err(spent.into()),
    }
}

fn place_file(
    into: &Beneath,
    at: &Inside,
    executable: bool,
    source: Opened,
    budget: &Budget,
    piece: &mut dyn FnMut(u64) -> Result<(), Spent>,
    made: &mut Made,
) -> Result<(), Problem> {
    if let Some(parent) = at.parent() {
        make_dirs(into, &parent, budget, made)?;
    }
    budget.entry()?;
    let path = into.path().join(at.as_path());
    let target = into.create(at, 0o600).map_err(Problem::place)?;
    made.files.push(at.clone());
    let spend = |bytes| {
        budget.bytes(bytes)?;
        piece(bytes)?;
        Ok::<(), Problem>(())
    };
    let copying = |error| Problem::copying(path.clone(), error);
    match source.unchecked {
        None => copy::copy(&source.file, &target, spend).map_err(copying)?,
        Some(expected) => {
            let (_, found) =
                copy::copy_hashed(&source.file, &target, expected.algorithm(), spend).map_err(copying)?;
            expected.check(&found)?;
        }
    }
    let mode = rustix::fs::Mode::from_raw_mode(if executable { 0o755 } else { 0o644 });
    rustix::fs::fchmod(&target, mode).map_err(|e| Problem::placing("set the mode of", path, e.into()))
}

fn make_dirs(into: &Beneath, at: &Inside, budget: &Budget, made: &mut Made) -> Result<(), Problem> {
    let mut spent = Ok(());
    let done = into.make_dirs(at, 0o755, |dir| {
        made.dirs.push(dir.clone());
        spent = spent.and_then(|()| budget.entry());
    });
    done.map_err(Problem::place)?;
    Ok(spent?)
}

fn unpack(
    into: &Beneath,
    source: Opened,
    budget: &Budget,
    piece: &mut dyn FnMut(u64) -> Result<(), Spent>,
) -> (Made, Result<(), Problem>) {
    let (made, result) = Unpacker::new(into, budget, piece).run(source.file);
    (made, result.map_err(Problem::from))
}

fn unpack_below(
    into: &Beneath,
    below: &Inside,
    source: Opened,
    budget: &Budget,
    piece: &mut dyn FnMut(u64) -> Result<(), Spent>,
) -> (Made, Result<(), Problem>) {
    let mut made = Made::default();
    let opened =
        make_dirs(into, below, budget, &mut made).and_then(|()| into.dir(below).map_err(Problem::place));
    let dir = match opened {
        Ok(dir) => dir,
        Err(problem) => return (made, Err(problem)),
    };
    let (inner, result) = unpack(&dir, source, budget, piece);
    let here = |path: Inside| path.below(below);
    made.files.extend(inner.files.into_iter().map(here));
    made.dirs.extend(inner.dirs.into_iter().map(here));
    (made, result)
}
