//! Work that goes on beside the stages of the gate: tasks of this program, one after the other,
//! each with its output in a file until somebody waits for it.

use std::{
    collections::VecDeque,
    env, fs,
    fs::File,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{process, workspace};

/// The tasks that are running or waited for. Dropping it ends the one that is at work.
pub struct Beside {
    tasks: VecDeque<(&'static [&'static str], PathBuf)>,
    at_work: Arc<Mutex<AtWork>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct AtWork {
    child: Option<Child>,
    /// How each ended, in their order.
    ended: Vec<Result<(), String>>,
    /// Nobody waits any more.
    over: bool,
}

const PAUSE: Duration = Duration::from_millis(200);

impl Beside {
    /// Starts the first of them.
    pub fn start(tasks: &[&'static [&'static str]]) -> Result<Self> {
        let program = env::current_exe().context("cannot find this program")?;
        let folder = workspace::target().join("beside");
        workspace::fresh_dir(&folder)?;
        let tasks: VecDeque<_> = tasks
            .iter()
            .map(|task| (*task, folder.join(format!("{}.log", task.join(" ")))))
            .collect();
        let at_work = Arc::new(Mutex::new(AtWork::default()));
        let (all, shared) = (tasks.clone(), Arc::clone(&at_work));
        let thread = thread::spawn(move || {
            for (task, log) in all {
                let ended = run(&program, task, &log, &shared);
                lock(&shared)
                    .ended
                    .push(ended.map_err(|error| format!("{error:#}")));
            }
        });
        Ok(Self {
            tasks,
            at_work,
            thread: Some(thread),
        })
    }

    /// Waits for the first that nobody has waited for yet, and shows what it printed.
    pub fn wait(&mut self) -> Result<()> {
        let (task, log) = self.tasks.pop_front().context("nothing goes on beside")?;
        let ended = loop {
            let mut at_work = lock(&self.at_work);
            if at_work.ended.is_empty() {
                drop(at_work);
                thread::sleep(PAUSE);
            } else {
                break at_work.ended.remove(0);
            }
        };
        print!("{}", fs::read_to_string(log).unwrap_or_default());
        if let Err(why) = ended {
            bail!("`cargo xtask {}`: {why}", task.join(" "));
        }
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let mut at_work = lock(&self.at_work);
        at_work.over = true;
        if let Some(child) = &at_work.child {
            // Its own process group, with all the compilers in it. That it has just ended is
            // as well.
            let group = format!("-{}", child.id());
            let _ = process::output(Command::new("kill").args(["-TERM", "--", &group]));
        }
        drop(at_work);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(program: &PathBuf, task: &[&str], log: &PathBuf, shared: &Mutex<AtWork>) -> Result<()> {
    let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    // Gives way to the stages.
    let mut command = Command::new("nice");
    command
        .arg(program)
        .args(task)
        .stdin(Stdio::null())
        .stderr(file.try_clone()?)
        .stdout(file)
        .process_group(0);
    {
        let mut at_work = lock(shared);
        if at_work.over {
            bail!("ended before it began");
        }
        at_work.child = Some(process::start(&mut command)?);
    }
    loop {
        let mut at_work = lock(shared);
        let child = at_work.child.as_mut().context("there is no child")?;
        if let Some(status) = child.try_wait()? {
            at_work.child = None;
            return process::succeeded(&command, status);
        }
        drop(at_work);
        thread::sleep(PAUSE);
    }
}

/// What is shared is whole after each change.
fn lock(shared: &Mutex<AtWork>) -> std::sync::MutexGuard<'_, AtWork> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
