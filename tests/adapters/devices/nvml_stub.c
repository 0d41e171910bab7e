/* A libnvidia-ml.so.1 for machines without a GPU: enough of NVML for the real binding to read a scenario, which the
 * variable NVIDIA_STUB_SCENARIO names. NVIDIA_STUB_FIRST is the number of its first GPU, 1 unless it is set: no two
 * machines have the same one. Layouts and numbers are those of NVML's public header. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    OK = 0,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    TIMEOUT = 10,
    NOT_FOUND = 6,
    GPU_IS_LOST = 15,
};

enum { GPUS_MAX = 8, PROCESSES_MAX = 2, XIDS_MAX = 3, INSTANCES_MAX = 2 };

typedef struct {
    unsigned pid;
    unsigned long long memory;
} Use;

typedef struct {
    const char *name;
    char uuid[48];
    char bus[32];
    unsigned long long memory, used;
    unsigned major, minor;
    unsigned generation, generation_max, width, width_max;
    unsigned links;
    int mig; /* -1: not supported */
    int ecc; /* likewise */
    unsigned long long uncorrected;
    unsigned power, limit, temperature, slowdown, utilisation;
    unsigned long long reasons;
    int lost;        /* answers nothing but where it was plugged in */
    int handle_lost; /* has not even a handle */
    Use compute[PROCESSES_MAX], graphics[PROCESSES_MAX];
    unsigned computing, drawing;
    unsigned long long xids[XIDS_MAX];
    unsigned xid_count, xid_next;
    unsigned watched;
} Gpu;

typedef struct {
    char legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} Pci;

typedef struct {
    unsigned long long total, free, used;
} Memory;

typedef struct {
    unsigned gpu, memory;
} Utilisation;

typedef struct {
    unsigned pid;
    unsigned long long memory;
    unsigned gpu_instance, compute_instance;
} Process;

typedef struct {
    Gpu *device;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
} Event;

static Gpu gpus[GPUS_MAX];
static Gpu instances[INSTANCES_MAX];
static unsigned count;
static unsigned users; /* whoever is in shares one state, as in the real library */

static const unsigned long long GIB = 1024ULL * 1024 * 1024;

static unsigned first(void)
{
    const char *number = getenv("NVIDIA_STUB_FIRST");
    return number == NULL ? 1 : (unsigned)strtoul(number, NULL, 10);
}

static Gpu *add(const char *name, unsigned long long gib, unsigned major, unsigned minor)
{
    Gpu *gpu = &gpus[count];
    memset(gpu, 0, sizeof *gpu);
    gpu->name = name;
    gpu->memory = gib * GIB;
    gpu->used = GIB;
    gpu->major = major;
    gpu->minor = minor;
    gpu->generation = gpu->generation_max = 4;
    gpu->width = gpu->width_max = 16;
    gpu->mig = gpu->ecc = -1;
    gpu->power = 60000;
    gpu->limit = 450000;
    gpu->temperature = 41;
    gpu->slowdown = 93;
    snprintf(gpu->uuid, sizeof gpu->uuid, "GPU-00000000-0000-0000-0000-%012u", first() + count);
    snprintf(gpu->bus, sizeof gpu->bus, "00000000:%02X:00.0", count + 1);
    count++;
    return gpu;
}

static int is(const char *scenario)
{
    const char *wanted = getenv("NVIDIA_STUB_SCENARIO");
    return wanted != NULL && strcmp(wanted, scenario) == 0;
}

static void set_up_centre(void)
{
    unsigned index;
    for (index = 0; index < 8; index++) {
        Gpu *gpu = add("NVIDIA H100 80GB HBM3", 80, 9, 0);
        gpu->generation = gpu->generation_max = 5;
        gpu->links = 18;
        gpu->mig = 0;
        gpu->ecc = 1;
        gpu->limit = 700000;
    }
}

static void set_up_mig(void)
{
    static const char *names[INSTANCES_MAX] = {"NVIDIA H100 80GB HBM3 MIG 3g.40gb", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"};
    unsigned index;
    Gpu *gpu = add("NVIDIA H100 80GB HBM3", 80, 9, 0);
    gpu->mig = 1;
    gpu->ecc = 1;
    for (index = 0; index < INSTANCES_MAX; index++)
        instances[index].name = names[index];
}

static void set_up_rig(void)
{
    unsigned index;
    for (index = 0; index < 6; index++) {
        Gpu *gpu = add("NVIDIA GeForce RTX 3070", 8, 8, 6);
        gpu->width = gpu->width_max = 1;
        gpu->generation = gpu->generation_max = 2;
        gpu->limit = 130000;
    }
}

static void set_up_hot(void)
{
    Gpu *gpu = add("NVIDIA GeForce RTX 4090", 24, 8, 9);
    gpu->temperature = 94;
    gpu->utilisation = 100;
    gpu->power = 440000;
    gpu->used = 20 * GIB;
    gpu->reasons = 0x40 | 0x04;
    gpu->compute[0] = (Use){4711, 18 * GIB};
    gpu->computing = 1;
    gpu->graphics[0] = (Use){900, ~0ULL}; /* not available */
    gpu->graphics[1] = (Use){4711, GIB};
    gpu->drawing = 2;
}

static void set_up_xid(void)
{
    Gpu *gpu = add("NVIDIA A100-SXM4-80GB", 80, 8, 0);
    gpu->ecc = 1;
    gpu->uncorrected = 2;
    gpu->xids[0] = 31;
    gpu->xids[1] = 48;
    gpu->xid_count = 2;
}

int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    if (is("no-driver"))
        return DRIVER_NOT_LOADED;
    if (users++ > 0)
        return OK;
    count = 0;
    if (is("healthy"))
        add("NVIDIA GeForce RTX 4090", 24, 8, 9);
    else if (is("hot"))
        set_up_hot();
    else if (is("xid"))
        set_up_xid();
    else if (is("lost") || is("lost-handle")) {
        Gpu *gone;
        add("NVIDIA GeForce RTX 3090", 24, 8, 6);
        gone = add("NVIDIA GeForce RTX 3090", 24, 8, 6);
        gone->lost = is("lost");
        gone->handle_lost = is("lost-handle");
    } else if (is("8xh100"))
        set_up_centre();
    else if (is("mig"))
        set_up_mig();
    else if (is("rig"))
        set_up_rig();
    else
        return INVALID_ARGUMENT;
    return OK;
}

int nvmlShutdown(void)
{
    users--;
    return OK;
}

const char *nvmlErrorString(int result)
{
    (void)result;
    return "an error of the stub";
}

int nvmlSystemGetDriverVersion(char *text, unsigned size)
{
    snprintf(text, size, "550.54.14");
    return OK;
}

int nvmlDeviceGetCount_v2(unsigned *answer)
{
    *answer = count;
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Gpu **device)
{
    if (index >= count)
        return INVALID_ARGUMENT;
    if (gpus[index].handle_lost)
        return GPU_IS_LOST;
    *device = &gpus[index];
    return OK;
}

int nvmlDeviceGetPciInfo_v3(Gpu *gpu, Pci *pci)
{
    memset(pci, 0, sizeof *pci);
    memcpy(pci->bus_id, gpu->bus, sizeof pci->bus_id);
    return OK;
}

int nvmlDeviceGetName(Gpu *gpu, char *text, unsigned size)
{
    if (gpu->lost)
        return GPU_IS_LOST;
    snprintf(text, size, "%s", gpu->name);
    return OK;
}

int nvmlDeviceGetUUID(Gpu *gpu, char *text, unsigned size)
{
    if (gpu->lost)
        return GPU_IS_LOST;
    snprintf(text, size, "%s", gpu->uuid);
    return OK;
}

int nvmlDeviceGetMemoryInfo(Gpu *gpu, Memory *memory)
{
    if (gpu->lost)
        return GPU_IS_LOST;
    *memory = (Memory){gpu->memory, gpu->memory - gpu->used, gpu->used};
    return OK;
}

int nvmlDeviceGetCudaComputeCapability(Gpu *gpu, int *major, int *minor)
{
    *major = (int)gpu->major;
    *minor = (int)gpu->minor;
    return gpu->lost ? GPU_IS_LOST : OK;
}

/* Numbers that are told in one way: lost, not there, or the number. */
#define NUMBER(function, field)                                                                                        \
    int function(Gpu *gpu, unsigned *answer)                                                                           \
    {                                                                                                                  \
        *answer = gpu->field;                                                                                          \
        return gpu->lost ? GPU_IS_LOST : OK;                                                                           \
    }

NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, generation)
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, generation_max)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, width)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, width_max)
NUMBER(nvmlDeviceGetPowerManagementLimit, limit)
NUMBER(nvmlDeviceGetPowerUsage, power)

int nvmlDeviceGetNvLinkState(Gpu *gpu, unsigned link, unsigned *active)
{
    if (gpu->lost)
        return GPU_IS_LOST;
    if (gpu->links == 0)
        return NOT_SUPPORTED;
    *active = link < gpu->links;
    return OK;
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(Gpu *gpu, unsigned link, Pci *pci)
{
    if (link >= gpu->links)
        return INVALID_ARGUMENT;
    memset(pci, 0, sizeof *pci);
    /* Four switches share the links. */
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:C%u:00.0", link % 4);
    return OK;
}

int nvmlDeviceGetMigMode(Gpu *gpu, unsigned *current, unsigned *pending)
{
    if (gpu->mig < 0)
        return NOT_SUPPORTED;
    *current = *pending = (unsigned)gpu->mig;
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(Gpu *gpu, unsigned *answer)
{
    *answer = gpu->mig > 0 ? 7 : 0;
    return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(Gpu *gpu, unsigned index, Gpu **instance)
{
    if (gpu->mig <= 0 || index >= INSTANCES_MAX)
        return NOT_FOUND;
    *instance = &instances[index];
    return OK;
}

int nvmlDeviceGetEccMode(Gpu *gpu, unsigned *current, unsigned *pending)
{
    if (gpu->ecc < 0)
        return NOT_SUPPORTED;
    *current = *pending = (unsigned)gpu->ecc;
    return OK;
}

int nvmlDeviceGetTotalEccErrors(Gpu *gpu, unsigned kind, unsigned counter, unsigned long long *answer)
{
    if (gpu->ecc < 0 || counter != 0)
        return NOT_SUPPORTED;
    *answer = kind == 1 ? gpu->uncorrected : 5;
    return OK;
}

int nvmlDeviceGetUtilizationRates(Gpu *gpu, Utilisation *answer)
{
    if (gpu->lost)
        return GPU_IS_LOST;
    if (gpu->mig > 0)
        return NOT_SUPPORTED;
    *answer = (Utilisation){gpu->utilisation, 0};
    return OK;
}

int nvmlDeviceGetTemperature(Gpu *gpu, unsigned sensor, unsigned *answer)
{
    (void)sensor;
    *answer = gpu->temperature;
    return gpu->lost ? GPU_IS_LOST : OK;
}

int nvmlDeviceGetTemperatureThreshold(Gpu *gpu, unsigned threshold, unsigned *answer)
{
    *answer = gpu->slowdown;
    return threshold == 1 ? OK : NOT_SUPPORTED;
}

/* Only under its older name: the newer one is to be looked for first and not missed. */
int nvmlDeviceGetCurrentClocksThrottleReasons(Gpu *gpu, unsigned long long *answer)
{
    *answer = gpu->reasons;
    return OK;
}

static int tell(const Use *uses, unsigned there, unsigned *room, Process *answer)
{
    unsigned index;
    if (there > *room || (there > 0 && answer == NULL)) {
        *room = there;
        return INSUFFICIENT_SIZE;
    }
    for (index = 0; index < there; index++)
        answer[index] = (Process){uses[index].pid, uses[index].memory, 0, 0};
    *room = there;
    return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Gpu *gpu, unsigned *room, Process *answer)
{
    return tell(gpu->compute, gpu->computing, room, answer);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(Gpu *gpu, unsigned *room, Process *answer)
{
    return tell(gpu->graphics, gpu->drawing, room, answer);
}

int nvmlEventSetCreate(void **set)
{
    *set = gpus;
    return OK;
}

int nvmlDeviceRegisterEvents(Gpu *gpu, unsigned long long types, void *set)
{
    (void)set;
    if (gpu->lost || !(types & 8))
        return gpu->lost ? GPU_IS_LOST : NOT_SUPPORTED;
    gpu->watched = 1;
    return OK;
}

int nvmlEventSetWait_v2(void *set, Event *event, unsigned timeout_ms)
{
    unsigned index;
    (void)set;
    if (timeout_ms != 0)
        return INVALID_ARGUMENT; /* nobody may wait in a test */
    for (index = 0; index < count; index++) {
        Gpu *gpu = &gpus[index];
        if (gpu->watched && gpu->xid_next < gpu->xid_count) {
            *event = (Event){gpu, 8, gpu->xids[gpu->xid_next++], ~0U, ~0U};
            return OK;
        }
    }
    return TIMEOUT;
}

int nvmlEventSetFree(void *set)
{
    (void)set;
    return OK;
}
