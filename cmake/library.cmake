# libheddle: every folder but cli/, in one static library.
set(heddle_folders base engine kernels codecs unet dit controls sparse pipelines benchmark)
set(library_sources)
foreach(folder ${heddle_folders})
    file(GLOB_RECURSE found CONFIGURE_DEPENDS ${folder}/*.c)
    list(APPEND library_sources ${found})
endforeach()

add_library(libheddle STATIC ${library_sources})
set_target_properties(libheddle PROPERTIES OUTPUT_NAME heddle)
target_include_directories(libheddle
    PUBLIC $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}/include> $<INSTALL_INTERFACE:include>
    PRIVATE ${CMAKE_SOURCE_DIR})
target_compile_definitions(libheddle PRIVATE _GNU_SOURCE HD_VERSION="${PROJECT_VERSION}")
target_link_libraries(libheddle
    PRIVATE $<BUILD_INTERFACE:heddle_warnings>
    PRIVATE DNNL::dnnl PNG::PNG ZLIB::ZLIB PkgConfig::CJSON PkgConfig::XXHASH
    PRIVATE Threads::Threads m)

# The suffix of a file is the instruction set it may use; the operator chooses it at run time.
set(flags_avx2 -mavx2 -mfma -mf16c)
set(flags_avx512 ${flags_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl)
set(flags_avx512bf16 ${flags_avx512} -mavx512bf16)
set(flags_avxvnni ${flags_avx2} -mavxvnni)
set(flags_avx512vnni ${flags_avx512} -mavx512vnni)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    target_compile_definitions(libheddle PRIVATE HD_WITH_AVX2=1 HD_WITH_AVX512=1 HD_WITH_AVX512_BF16=1
        HD_WITH_AVX512_VNNI=1 HD_WITH_AVX_VNNI=1)
endif()
foreach(source ${library_sources})
    if(source MATCHES "_(avx2|avxvnni|avx512|avx512bf16|avx512vnni)\\.c$")
        set(flags "${flags_${CMAKE_MATCH_1}}") # at once: the next MATCHES forgets it
        if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
            set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${flags}")
        else()
            set_source_files_properties(${source} PROPERTIES HEADER_FILE_ONLY TRUE)
        endif()
    endif()
endforeach()
